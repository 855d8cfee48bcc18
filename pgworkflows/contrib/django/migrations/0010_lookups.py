from django.db import migrations

from pgworkflows.contrib.django.operations import Apply


class Migration(migrations.Migration):
    dependencies = [("pgworkflows", "0009_plans")]
    operations = [Apply("0010_lookups")]
