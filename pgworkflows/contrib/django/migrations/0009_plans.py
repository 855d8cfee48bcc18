from django.db import migrations

from pgworkflows.contrib.django.operations import Apply


class Migration(migrations.Migration):
    dependencies = [("pgworkflows", "0008_inspection")]
    operations = [Apply("0009_plans")]
