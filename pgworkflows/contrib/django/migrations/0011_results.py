from django.db import migrations

from pgworkflows.contrib.django.operations import Apply


class Migration(migrations.Migration):
    dependencies = [("pgworkflows", "0010_lookups")]
    operations = [Apply("0011_results")]
